# A producer in PowerShell 7.3 or newer: sends one message and follows it to its outcome.
#   .\examples\producer.ps1 -Number +4915200000000 -Body "Hello"
param(
    [Parameter(Mandatory = $true)] [string] $Number,
    [Parameter(Mandatory = $true)] [string] $Body,
    [string] $Gateway = 'https://localhost:8001',
    [string] $Ca = 'certs/ca.crt',
    [string] $Cert = 'certs/clients/demo/client.crt',
    [string] $Key = 'certs/clients/demo/client.key',
    [int] $Patience = 60
)

Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'

# Our certificate with its key. Windows' TLS wants the key in a store: through PFX it gets there.
$pem = [Security.Cryptography.X509Certificates.X509Certificate2]::CreateFromPemFile($Cert, $Key)
$pfx = $pem.Export([Security.Cryptography.X509Certificates.X509ContentType]::Pfx)
$own = [Security.Cryptography.X509Certificates.X509Certificate2]::new($pfx)

# Only the broker's own CA vouches for the gateway.
$policy = [Security.Cryptography.X509Certificates.X509ChainPolicy]::new()
$policy.TrustMode = [Security.Cryptography.X509Certificates.X509ChainTrustMode]::CustomRootTrust
$policy.RevocationMode = [Security.Cryptography.X509Certificates.X509RevocationMode]::NoCheck
$root = [Security.Cryptography.X509Certificates.X509Certificate2]::CreateFromPem((Get-Content $Ca -Raw))
$null = $policy.CustomTrustStore.Add($root)

$handler = [Net.Http.SocketsHttpHandler]::new()
$handler.SslOptions.CertificateChainPolicy = $policy
$handler.SslOptions.ClientCertificates = [Security.Cryptography.X509Certificates.X509CertificateCollection]::new()
$null = $handler.SslOptions.ClientCertificates.Add($own)
$client = [Net.Http.HttpClient]::new($handler)
$client.Timeout = [TimeSpan]::FromSeconds(10)

# No answer, 429 and 503 mean unknown or later: ask again, with the same key.
function Invoke-Gateway([string] $Method, [string] $Path, [string] $Json, [string] $IdempotencyKey) {
    $deadline = [DateTime]::UtcNow.AddSeconds($Patience)
    $wait = 0.2
    while ($true) {
        $request = [Net.Http.HttpRequestMessage]::new($Method, "$Gateway$Path")
        if ($Json) {
            $request.Content = [Net.Http.StringContent]::new($Json, [Text.Encoding]::UTF8, 'application/json')
            $request.Headers.Add('Idempotency-Key', $IdempotencyKey)
        }
        $after = $null
        try {
            $response = $client.Send($request)
            $status = [int] $response.StatusCode
            $answer = $response.Content.ReadAsStringAsync().GetAwaiter().GetResult() | ConvertFrom-Json
            if ($status -lt 400) {
                return $answer
            }
            if ($status -ne 429 -and $status -ne 503) {
                [Console]::Error.WriteLine("refused: $status $($answer.error): $($answer.detail)")
                exit 1
            }
            $after = $response.Headers.RetryAfter
        } catch [Net.Http.HttpRequestException] {
            Write-Verbose "no answer: $_"
        } catch [Threading.Tasks.TaskCanceledException] {
            Write-Verbose 'no answer in time'
        }
        if ($after -and $after.Delta) {
            $wait = $after.Delta.TotalSeconds
        } else {
            $wait = [Math]::Min($wait * 2, 5)
        }
        if ([DateTime]::UtcNow.AddSeconds($wait) -gt $deadline) {
            throw "$Method ${Path}: no definite answer within $Patience s"
        }
        Start-Sleep -Milliseconds ([int] ($wait * 1000))
    }
}

# One key for one message, however often it is sent.
$message = @{ sender_number = $Number; message_body = $Body } | ConvertTo-Json -Compress
$queued = Invoke-Gateway 'POST' '/api/v1/messages' $message ([guid]::NewGuid().ToString())
Write-Output "queued $($queued.message_id)"
do {
    Start-Sleep -Milliseconds 500
    $found = Invoke-Gateway 'GET' "/api/v1/messages/$($queued.message_id)" '' ''
} while ($found.status -eq 'queued')
Write-Output "$($found.status) $($queued.message_id)"
if ($found.status -ne 'delivered') {
    exit 1
}
