# A host volume, mounted as Nomad has it: once as it is, once read-only and with what the host mounts in it later.
variable "image" {
  type = string
}

job "volume-mount" {
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

    volume "shared" {
      type   = "host"
      source = "shared"
    }

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "echo made > /rw/made && cat /ro/made && ! touch /ro/x && ! touch /alloc/logs/x && echo done"]
      }

      volume_mount {
        volume      = "shared"
        destination = "/rw"
      }

      volume_mount {
        volume           = "shared"
        destination      = "/ro"
        read_only        = true
        propagation_mode = "host-to-task"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
