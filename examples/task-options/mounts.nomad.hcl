# mounts: files and directories of the host, directories of the allocation's, and file systems in memory. A bind says rbind, and ro or rw.
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
        args    = ["-c", "grep hello /host/greeting && ! touch /host/x && touch /scratch/x && echo hi > /data/x && grep -q '/scratch tmpfs .*size=1024k' /proc/mounts"]

        mounts = [
          {
            type    = "bind"
            target  = "/host"
            source  = var.directory
            options = ["rbind", "ro"]
          },
          {
            type    = "tmpfs"
            target  = "/scratch"
            options = ["size=1m", "mode=0700"]
          },
          {
            # Of the allocation: it is there for the next attempt, too.
            type   = "volume"
            target = "/data"
          },
        ]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
