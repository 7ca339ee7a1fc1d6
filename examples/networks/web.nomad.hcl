# A web server in a group with a network of its own, in bridge mode. It is reached from outside by a port that Nomad chose, by
# one that the job chose, and by one on another of the host's networks; Nomad's checks ask it for its page. The task "look"
# shares the network: it finds the server on the loopback interface, and what Nomad and the job say of the network.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

variable "fixed" {
  type    = number
  default = 8088
}

job "web" {
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
      port "fixed" {
        static = var.fixed
        to     = 8080
      }
      port "near" {
        to           = 8080
        host_network = "near"
      }

      dns {
        servers  = ["192.0.2.53", "192.0.2.54"]
        searches = ["shop.example", "example"]
        options  = ["ndots:2", "timeout:1"]
      }
    }

    service {
      name     = "web"
      provider = "nomad"
      port     = "http"

      check {
        name     = "page"
        type     = "http"
        path     = "/"
        interval = "1s"
        timeout  = "1s"
      }
      check {
        name     = "port"
        type     = "tcp"
        interval = "1s"
        timeout  = "1s"
      }
    }

    task "server" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "httpd"
        args    = ["-f", "-p", "[::]:8080", "-h", "/local/pages"]
        init    = true
      }

      template {
        data        = "hello from the web\n"
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
        image       = var.image
        command     = "sh"
        args        = ["-eux", "/local/look"]
        extra_hosts = ["db.example:192.0.2.7", "db6.example:[2001:db8::7]"]
      }

      template {
        destination = "local/look"
        data        = <<-END
          page() { test "$(wget -qO- "http://$1:8080/")" = "hello from the web"; }
          until page 127.0.0.1; do sleep 0.1; done
          page "[::1]"
          page "$NOMAD_ALLOC_IP_http"

          ip -o -4 address show eth0 | grep -qF " $NOMAD_ALLOC_IP_http/"
          test "$NOMAD_ALLOC_ADDR_http" = "$NOMAD_ALLOC_IP_http:8080"
          test "$NOMAD_PORT_http" = 8080
          test "$NOMAD_HOST_PORT_http" != 8080
          test "$NOMAD_ADDR_http" = "$NOMAD_IP_http:$NOMAD_HOST_PORT_http"
          test "$NOMAD_HOST_PORT_fixed" = ${var.fixed}
          test "$NOMAD_IP_near" != "$NOMAD_IP_http"

          test "$(grep ^nameserver /etc/resolv.conf)" = "$(printf 'nameserver 192.0.2.53\nnameserver 192.0.2.54')"
          grep -qx 'search shop.example example' /etc/resolv.conf
          grep -qx 'options ndots:2 timeout:1' /etc/resolv.conf
          grep -qE '^192.0.2.7[[:space:]]+db.example$' /etc/hosts
          grep -qE '^2001:db8::7[[:space:]]+db6.example$' /etc/hosts
        END
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
