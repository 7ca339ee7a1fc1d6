# command and args: run in place of the image's command; the image's entrypoint, if it has one, stays in front.
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
        args    = ["-c", "test \"$0 $1\" = \"first second\"", "first", "second"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
