# A web server in a network that the operator describes in a file of the agent's cni_config_dir, by the name "described".
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "described" {
  group "web" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    network {
      mode = "cni/described"

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
      }

      template {
        data        = "hello from the network\n"
        destination = "local/pages/index.html"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
