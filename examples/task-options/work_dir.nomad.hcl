# work_dir: cwd by docker's name.
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
        args    = ["-c", "test $(pwd) = /home"]

        work_dir = "/home"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
