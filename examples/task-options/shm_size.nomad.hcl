# shm_size: how large /dev/shm is, in bytes or with a unit.
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
        args    = ["-c", "grep -q '/dev/shm tmpfs .*size=131072k' /proc/mounts"]

        shm_size = "128m"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
