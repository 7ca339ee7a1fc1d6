# host_dns = false: the task has the /etc/resolv.conf of its image, or none, in place of the host's.
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
        args    = ["-c", "! grep -qs nameserver /etc/resolv.conf"]

        host_dns = false
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
