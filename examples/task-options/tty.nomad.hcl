# tty: the task has a terminal; all that it writes to it is in its stdout.
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
        args    = ["-c", "test -t 0 && test -t 1 && test -t 2 && echo \"$TERM\""]

        tty = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
