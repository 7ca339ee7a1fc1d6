# A web server with a network of its own, on the driver's bridge. One of its ports is the host's, too; the service is at the
# task's own address, which Nomad has from the driver.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

variable "provider" {
  type    = string
  default = "nomad"
}

job "own" {
  group "web" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    network {
      port "http" {
        to = 8080
      }
    }

    task "server" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "httpd"
        args    = ["-f", "-p", "8080", "-h", "/local/pages"]
        init    = true

        network_mode = "bridge"
        ports        = ["http"]
      }

      service {
        name         = "own"
        provider     = var.provider
        port         = "http"
        address_mode = "driver"

        check {
          name     = "port"
          type     = "tcp"
          interval = "1s"
          timeout  = "1s"
          # Nomad itself asks the host's port.
          address_mode = var.provider == "consul" ? "driver" : ""
        }
      }

      template {
        data        = "hello from the task\n"
        destination = "local/pages/index.html"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
