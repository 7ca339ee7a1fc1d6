# user: as whom the task runs, by the names in the image's own files or by numbers.
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
      user   = "1000:2000"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "test \"$(id -u) $(id -g)\" = \"1000 2000\""]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
