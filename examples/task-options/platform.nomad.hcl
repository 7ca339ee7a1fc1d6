# arch, os, variant: the platform of the image, of those that its name stands for. For nodes with amd64.
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
        args    = ["-c", "uname -m | grep -q x86_64"]

        arch    = "amd64"
        os      = "linux"
        variant = "v1"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
