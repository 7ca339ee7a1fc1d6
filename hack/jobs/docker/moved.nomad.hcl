# A job as it is written for Nomad's own docker driver, which goes with its node from one driver to another. Its page is how
# often the allocation's task was started.
variable "image" {
  type = string
}

job "moved" {
  group "main" {
    restart {
      attempts = 100
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    network {
      port "http" {
        to = 8080
      }
    }

    task "main" {
      driver = "docker"

      config {
        image   = var.image
        command = "sh"
        args = ["-euc", <<-END
          echo started >> /alloc/data/starts
          wc -l < /alloc/data/starts > /local/index.html
          exec httpd -f -p 8080 -h /local
          END
        ]
        init  = true
        ports = ["http"]
      }

      kill_timeout = "5s"

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
