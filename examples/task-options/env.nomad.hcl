# env and template: variables and rendered files reach the task.
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
        args    = ["-c", "test \"$COLOR $SHAPE\" = \"green round\" && grep -qx memory=32 /local/settings"]
      }

      env {
        COLOR = "green"
      }

      template {
        data        = "SHAPE=round\n"
        destination = "secrets/shape"
        env         = true
      }

      template {
        data        = "memory={{ env \"NOMAD_MEMORY_LIMIT\" }}\n"
        destination = "local/settings"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
