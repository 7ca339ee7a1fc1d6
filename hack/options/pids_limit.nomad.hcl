# pids_limit: how many processes the task has at most. The sixth can't be started.
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
        args    = ["-c", "(for i in 1 2 3 4 5 6; do sleep 9 & done) 2>&1 | grep -q \"can't fork\""]

        pids_limit = 5
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
