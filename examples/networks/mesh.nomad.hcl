# A service of Consul's mesh: its sidecar has the group's network in common with the server, the proxy's configuration from
# Nomad, and a socket to Consul. The sidecar here is no Envoy: it looks at what an Envoy would start with, asks the server on
# the loopback interface as an Envoy would, and listens at the proxy's port for Consul's check.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "mesh" {
  group "api" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    network {
      mode = "bridge"
    }

    service {
      name = "api"
      port = "9001"

      connect {
        sidecar_service {}

        sidecar_task {
          driver = "containerd-driver"

          config {
            image   = var.image
            command = "sh"
            init    = true
            args = ["-euxc", <<-END
              proxy="_nomad-task-$NOMAD_ALLOC_ID-group-api-api-9001-sidecar-proxy"
              grep -qF '"id": "'"$proxy"'"' /secrets/envoy_bootstrap.json
              grep -qF alloc/tmp/consul_grpc.sock /secrets/envoy_bootstrap.json
              test -S /alloc/tmp/consul_grpc.sock
              until wget -qO /tmp/index.html http://127.0.0.1:9001/; do sleep 0.1; done
              exec httpd -f -p "$NOMAD_PORT_connect_proxy_api" -h /tmp
              END
            ]
          }

          resources {
            cpu    = 20
            memory = 32
          }
        }
      }
    }

    task "server" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "httpd"
        args    = ["-f", "-p", "127.0.0.1:9001", "-h", "/local/pages"]
        init    = true
      }

      template {
        data        = "hello from the api\n"
        destination = "local/pages/index.html"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
