# A web server in the host's network, which can be asked for in two ways: it listens where Nomad says, and nothing is translated on the way.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "host" {
  group "web" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    network {
      port "http" {}
    }

    task "server" {
      driver = "containerd-driver"

      config {
        image        = var.image
        command      = "httpd"
        args         = ["-f", "-p", "${NOMAD_ADDR_http}", "-h", "/local/pages"]
        init         = true
        host_network = true
      }

      template {
        data        = "hello from the host\n"
        destination = "local/pages/index.html"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "look" {
      driver = "containerd-driver"

      lifecycle {
        hook = "poststart"
      }

      config {
        image        = var.image
        command      = "sh"
        args         = ["-eux", "/local/look"]
        network_mode = "host"
      }

      template {
        destination = "local/look"
        data        = <<-END
          until wget -qO- "http://$NOMAD_ADDR_http/"; do sleep 0.1; done
          test "$NOMAD_PORT_http" = "$NOMAD_HOST_PORT_http"
          test "$NOMAD_ADDR_http" = "$NOMAD_IP_http:$NOMAD_PORT_http"
        END
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
