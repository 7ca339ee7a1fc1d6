# A group with a network and a host name of its own, under the driver's name docker. Each of its tasks has the name, and finds
# the group's address by it.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "hostname" {
  group "web" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    network {
      mode     = "bridge"
      hostname = "web.example"

      port "http" {
        to = 80
      }
    }

    task "server" {
      driver = "docker"
      user   = "1000"

      config {
        image   = var.image
        command = "httpd"
        args    = ["-f", "-p", "80", "-h", "/local/pages"]
        init    = true
        ports   = ["http"]
      }

      template {
        data        = "hello from the group\n"
        destination = "local/pages/index.html"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "look" {
      driver = "docker"

      lifecycle {
        hook = "poststart"
      }

      config {
        image   = var.image
        command = "sh"
        args    = ["-eux", "/local/look"]
      }

      template {
        destination = "local/look"
        data        = <<-END
          test "$(hostname)" = web.example
          test "$(cat /etc/hostname)" = web.example
          grep -qE "^$NOMAD_ALLOC_IP_http[[:space:]]+web.example$" /etc/hosts
          until test "$(wget -qO- http://web.example/)" = "hello from the group"; do sleep 0.1; done
        END
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
