# A job whose image does not exist: tried once, and given up.
variable "image" {
  type = string
}

job "missing-image" {
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
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
