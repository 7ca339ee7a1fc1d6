# Words of docker's and podman's jobs that have no meaning here, so that they run unedited.
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
        args    = ["-c", "true"]

        container_exists_attempts = 5
        isolation                 = "default"
        socket                    = "default"
        selinux_opts              = []
        volume_driver             = "local"

        healthchecks {
          disable = true
        }

        storage_opt {}
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
