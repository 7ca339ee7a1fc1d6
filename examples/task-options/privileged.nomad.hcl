# privileged = true: all capabilities and devices, and all of the kernel's file systems, writable. The operator can forbid
# it: allow_privileged = false.
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
        args    = ["-c", <<-END
          set -e
          mkdir /tmp/new
          mount -t tmpfs none /tmp/new
          test -w /proc/sys/kernel/hostname
          : < /dev/kmsg
        END
        ]

        privileged = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
