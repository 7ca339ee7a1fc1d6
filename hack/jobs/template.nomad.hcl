# What Nomad puts before a task: variables, rendered files, its directories.
variable "image" {
  type = string
}

job "template" {
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
        args    = ["-c", "cat /local/settings /secrets/token; echo color=$COLOR job=$NOMAD_JOB_NAME greeting=$GREETING; echo kept >/alloc/data/kept"]
      }

      env {
        COLOR = "green"
      }

      template {
        data        = "memory={{ env \"NOMAD_MEMORY_LIMIT\" }}\n"
        destination = "local/settings"
      }

      template {
        data        = "token=abc\n"
        destination = "secrets/token"
      }

      resources {
        cpu    = 20
        memory = 48
      }
    }
  }
}
