# group_add: groups beside the user's own, by a name of the image or by number.
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
        args    = ["-c", "id -G | grep -qw 0 && id -G | grep -qw 4242"]

        group_add = ["root", "4242"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
