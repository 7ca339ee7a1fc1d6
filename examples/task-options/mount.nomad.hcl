# mount: as mounts, a block each, with the keys of Nomad's docker driver.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

variable "directory" {
  type    = string
  default = "/srv/example"
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
        args    = ["-c", "grep hello /host/greeting && ! touch /host/x && test $(stat -c %a /scratch) = 700 && grep -q '/scratch tmpfs .*size=1024k' /proc/mounts"]

        mount {
          type     = "bind"
          target   = "/host"
          source   = var.directory
          readonly = true
        }

        mount {
          type   = "tmpfs"
          target = "/scratch"

          tmpfs_options {
            size = 1048576
            mode = 448 # 0700
          }
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
