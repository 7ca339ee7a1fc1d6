# image_volumes: whether the paths that the image declares by VOLUME get fresh volumes, or are left alone.
variable "volume_image" {
  type    = string
  default = "docker.io/library/redis:alpine"
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
        image   = var.volume_image
        command = "sh"
        args    = ["-c", "test -d /data && ! grep -q ' /data ' /proc/mounts"]

        image_volumes = "ignore"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
