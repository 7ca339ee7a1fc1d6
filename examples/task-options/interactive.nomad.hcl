# interactive: stdin is a pipe that stays open, in place of one that is at its end.
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
        args    = ["-c", "test -p /proc/self/fd/0"]

        interactive = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
