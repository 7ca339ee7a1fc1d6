# dns, in the group's network block: the servers that count before those of host_dns. Nomad makes the network with CNI plugins.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "option" {
  type = "batch"

  group "main" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }

    network {
      mode = "bridge"

      dns {
        servers  = ["192.0.2.53"]
        searches = ["example"]
      }
    }

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "test \"$(grep ^nameserver /etc/resolv.conf)\" = \"nameserver 192.0.2.53\" && grep -qx 'search example' /etc/resolv.conf"]

        host_dns = false
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
