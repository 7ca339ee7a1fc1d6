# devices: devices of the host, as "path", or "path:path in the container:permissions of r, w and m".
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
        args    = ["-c", "(: > /dev/log-of-kernel) && ! head -c 1 /dev/log-of-kernel && test -c /dev/full"]

        devices = ["/dev/kmsg:/dev/log-of-kernel:w", "/dev/full"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
