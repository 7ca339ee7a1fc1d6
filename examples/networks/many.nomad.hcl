# Tasks by the dozen, started at once, each with a network of its own on the driver's bridge. Each writes down its address.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "many" {
  type = "batch"

  group "main" {
    count = 20

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
        args    = ["-c", "trap 'exit 0' TERM; ip -o -4 address show eth0 >/alloc/data/all && mv /alloc/data/all /alloc/data/address; sleep 1000 & wait"]

        network_mode = "bridge"
      }

      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}
