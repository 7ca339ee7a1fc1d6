# pid_mode = "host": the task sees the processes of the host. The operator has to allow it: allowed_modes { pid = ["host"] }.
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
        args    = ["-c", "test $$ -gt 1 && grep -q nomad /proc/[0-9]*/comm"]

        pid_mode = "host"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
