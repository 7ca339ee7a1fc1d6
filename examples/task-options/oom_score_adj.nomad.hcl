# oom_score_adj: how likely the kernel kills the task when the machine runs out of memory.
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
        args    = ["-c", "test $(cat /proc/self/oom_score_adj) = 500"]

        oom_score_adj = 500
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
