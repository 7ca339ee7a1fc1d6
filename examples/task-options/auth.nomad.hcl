# auth: who the image's registry is told to be asked by. The registry's address is held against server_address, where that is
# given.
variable "private_image" {
  type = string
}

variable "password" {
  type = string
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
        image   = var.private_image
        command = "sh"
        args    = ["-c", "test -e /bin/busybox"]

        auth {
          username       = "reader"
          password       = var.password
          server_address = split("/", var.private_image)[0]
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
