# readonly_rootfs = true: the image can't be written. What Nomad and the job mount can.
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
        args    = ["-c", "! touch /tmp/new 2> /dev/null && touch /local/new /alloc/new"]

        readonly_rootfs = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
