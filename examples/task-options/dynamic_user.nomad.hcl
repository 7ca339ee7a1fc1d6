# user: one of Nomad's dynamic users is in no file; its number is that of the user and of the group.
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
      user   = "nomad-80000"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "test \"$(id -u) $(id -g)\" = \"80000 80000\""]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
