# A task that fails each time, and is restarted twice.
variable "image" {
  type = string
}

job "restart" {
  type = "batch"

  group "main" {
    restart {
      attempts = 2
      interval = "5m"
      delay    = "500ms"
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
        args    = ["-c", "echo try; exit 3"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
