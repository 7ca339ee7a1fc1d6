# working_dir: cwd by podman's name.
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

        working_dir = "/home"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
