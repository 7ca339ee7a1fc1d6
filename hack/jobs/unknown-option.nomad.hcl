# A task with an option that the driver doesn't know.
variable "image" {
  type = string
}

job "unknown-option" {
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
        image = var.image
        foo   = 1
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
