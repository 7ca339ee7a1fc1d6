# entrypoint: takes the place of the image's entrypoint, and of its command, too. A text is a program, a list one with arguments.
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
        image      = var.image
        entrypoint = ["sh", "-c"]
        args       = ["test \"$0 $1\" = \"first second\"", "first", "second"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
