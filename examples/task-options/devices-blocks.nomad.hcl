# devices as blocks, with the names of Nomad's docker driver.
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
        args    = ["-c", "(: > /dev/log-of-kernel) && ! head -c 1 /dev/log-of-kernel && test -c /dev/other"]

        devices {
          host_path          = "/dev/kmsg"
          container_path     = "/dev/log-of-kernel"
          cgroup_permissions = "w"
        }
        devices {
          host_path      = "/dev/full"
          container_path = "/dev/other"
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
