# cwd: the directory in the container that the task runs in. It is made if it isn't in the image.
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
        args    = ["-c", "test $(pwd) = /srv/app/data"]

        cwd = "/srv/app/data"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
