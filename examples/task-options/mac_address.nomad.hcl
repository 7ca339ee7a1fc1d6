# mac_address, network_aliases: what the interface of a network of the task's own is to have, and by which other names the task goes.
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

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", <<-EOT
          grep -qx 02:68:b3:29:da:98 /sys/class/net/eth0/address && grep -q ' db www$' /etc/hosts && ping -c 1 -w 5 www >/dev/null
        EOT
        ]

        network_mode    = "bridge"
        mac_address     = "02:68:b3:29:da:98"
        network_aliases = ["db", "www"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
