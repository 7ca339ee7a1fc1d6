# A web server that is registered with Consul, by the port of the host's and by its own address in the group's network. A script
# that Nomad runs inside the task, for Consul's check, looks for a file: 0 is well, 1 a warning, and all else is critical.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "registered" {
  group "web" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    network {
      mode = "bridge"

      port "http" {
        to = 8080
      }
    }

    service {
      name = "shop"
      port = "http"

      check {
        name     = "page"
        type     = "http"
        path     = "/"
        interval = "1s"
        timeout  = "1s"
      }
      check {
        name     = "stock"
        type     = "script"
        task     = "server"
        command  = "/bin/sh"
        args     = ["-c", "cat /app/greeting; test ! -e /local/sold-out || exit 2"]
        interval = "1s"
        timeout  = "5s"
      }
    }

    service {
      name         = "shop-inside"
      port         = "http"
      address_mode = "alloc"
    }

    task "server" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "httpd"
        args    = ["-f", "-p", "8080", "-h", "/local/pages"]
        init    = true
      }

      template {
        data        = "hello from the shop\n"
        destination = "local/pages/index.html"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
