# pids_limit: how many processes the task has at most. The shell that can't start another ends before its last word.
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
        args    = ["-c", "test -z \"$(for i in 1 2 3 4 5; do sleep 9 > /dev/null & done 2> /dev/null; echo free)\""]

        pids_limit = 5
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
