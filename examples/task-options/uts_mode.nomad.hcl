# uts_mode = "host": the task goes by the host's name. The operator has to allow it: allowed_modes { uts = ["host"] }.
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
        args    = ["-c", "test \"$(hostname)\" = \"$NODE\""]

        uts_mode = "host"
      }

      env {
        NODE = "${attr.unique.hostname}"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
