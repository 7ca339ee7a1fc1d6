# file_limit: how many files a process of the task has open at most.
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
        args    = ["-c", "test $(ulimit -Sn) = 512 && test $(ulimit -Hn) = 512"]

        file_limit = 512
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
