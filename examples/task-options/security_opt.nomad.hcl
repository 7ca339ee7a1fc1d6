# security_opt: docker's list. Taken are no-new-privileges, seccomp=unconfined|builtin|<path>, apparmor=unconfined|<profile>,
# systempaths=unconfined and label=disable.
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
          grep -q "^NoNewPrivs:[[:space:]]*1$" /proc/self/status
          grep -q "^Seccomp:[[:space:]]*0$" /proc/self/status
          test -w /proc/sys/kernel/hostname
        END
        ]

        security_opt = ["no-new-privileges", "seccomp=unconfined", "systempaths=unconfined"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
