# A task without a network: it has the loopback interface, on which it talks to itself, and nothing else.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "alone" {
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
        args    = ["-eux", "/local/look"]

        network_mode = "none"
      }

      template {
        destination = "local/look"
        data        = <<-END
          ip -o address show | grep -vE '^[0-9]+: lo ' && exit 1
          test -z "$(ip route show)"
          echo hello >/tmp/index.html
          httpd -p '[::]:8080' -h /tmp
          test "$(wget -qO- http://127.0.0.1:8080/)" = hello
          test "$(wget -qO- 'http://[::1]:8080/')" = hello
        END
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
