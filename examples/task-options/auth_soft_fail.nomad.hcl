# auth_soft_fail: goes on without credentials where they are for another registry, can not be had, or are not taken. This image
# needs none.
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
        args    = ["-c", "test -e /bin/busybox"]

        auth {
          username       = "reader"
          password       = "secret"
          server_address = "registry.example"
        }
        auth_soft_fail = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
