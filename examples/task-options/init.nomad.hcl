# init: an init program of the host is the first process; it forwards signals and reaps what other processes leave.
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
        args    = ["-c", "test \"$(cat /proc/1/comm)\" = docker-init && test $$ -gt 1"]

        init = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
