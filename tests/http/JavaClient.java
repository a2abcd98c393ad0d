import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;

/** Sends a file to an address: by default settings, with a body of unknown length, and several at a time. */
public class JavaClient {
    public static void main(String[] arguments) throws Exception {
        URI address = URI.create(arguments[0]);
        Path file = Path.of(arguments[1]);
        byte[] content = Files.readAllBytes(file);
        HttpClient client = HttpClient.newHttpClient();
        show(client.send(HttpRequest.newBuilder(address).POST(BodyPublishers.ofFile(file)).build(), BodyHandlers.ofString()));
        show(client.send(HttpRequest.newBuilder(address).POST(BodyPublishers.ofByteArray(content)).build(), BodyHandlers.ofString()));
        HttpRequest chunked = HttpRequest.newBuilder(address).POST(BodyPublishers.fromPublisher(BodyPublishers.ofByteArray(content))).build();
        show(client.send(chunked, BodyHandlers.ofString()));
        HttpRequest patient = HttpRequest.newBuilder(address).expectContinue(true).POST(BodyPublishers.ofByteArray(content)).build();
        show(client.send(patient, BodyHandlers.ofString()));
        List<CompletableFuture<HttpResponse<String>>> several = new ArrayList<>();
        for (int count = 0; count < 4; count++) {
            HttpRequest one = HttpRequest.newBuilder(address).POST(BodyPublishers.ofByteArray(content)).build();
            several.add(client.sendAsync(one, BodyHandlers.ofString()));
        }
        for (CompletableFuture<HttpResponse<String>> one : several) {
            show(one.get());
        }
    }

    private static void show(HttpResponse<String> answer) {
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
