# seccomp = false: the task may make all system calls that its capabilities allow. By default it has a profile.
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
        args    = ["-c", "grep -q \"^Seccomp:[[:space:]]*0$\" /proc/self/status"]

        seccomp = false
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
