# hostname: the name by which the task goes, which it also finds in /etc/hostname and /etc/hosts.
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
        args    = ["-c", "test \"$(hostname)\" = web-1.example && grep -qx web-1.example /etc/hostname && grep -q ' web-1.example$' /etc/hosts"]

        hostname = "web-1.example"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
