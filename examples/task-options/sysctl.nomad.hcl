# sysctl: parameters of the kernel that are a namespace's own. A map: HCL takes no dots in the names of a block.
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
        args    = ["-c", "test \"$(cat /proc/sys/net/core/somaxconn)\" = 1024 && test \"$(cat /proc/sys/fs/mqueue/msg_max)\" = 17"]

        sysctl = {
          "net.core.somaxconn" = "1024"
          "fs.mqueue.msg_max"  = 17
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
