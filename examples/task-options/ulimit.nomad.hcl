# ulimit: limits for each process of the task, as "soft:hard" or one number for both.
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
        args    = ["-c", "test $(ulimit -Sn) = 2048 && test $(ulimit -Hn) = 4096 && test $(ulimit -c) = 0"]

        ulimit {
          nofile = "2048:4096"
          core   = "0"
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
